"""Pictures as bytes: upload decoding, storage, grids, contact sheets, thumbnails, blurring and films."""
