"""The data room: files on disk become batches, and class frequencies."""
