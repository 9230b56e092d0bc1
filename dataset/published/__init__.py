"""The other data sets of the paper: Shanghai, MeteoNet and CIKM."""
