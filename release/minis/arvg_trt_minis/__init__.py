"""Hold the small trained models that arvg-trt does not ship itself, a folder each: data alone."""
