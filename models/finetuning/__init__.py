"""Fine-tuning: from a pretrained network and a folder of images to a published network with gates."""
