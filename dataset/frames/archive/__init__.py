"""Where frames come from: files, tar files and Zarr stores, found by time."""
