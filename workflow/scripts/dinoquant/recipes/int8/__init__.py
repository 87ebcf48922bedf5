"""What the int8 recipes share: scales from calibration images, rounding, and the transformer put together anew."""
