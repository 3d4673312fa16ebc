"""Pictures as bytes and pixels: kept by their content, put side by side, blurred, made into films."""
