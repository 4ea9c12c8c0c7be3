"""The cellar: checks, files, devices, downloads. Nobody needs it to understand the science."""
