"""Model repositories on S3, Google Cloud Storage and the Hugging Face hub, mirrored into a local folder."""
