"""The images: get an archive or folder, check it, select and pack what a run uses, and prepare it for the model."""
