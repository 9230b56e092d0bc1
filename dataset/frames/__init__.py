"""Anybody's radar: folders of frames that their names date."""
