"""The parts joined: diffusers pipelines with save_pretrained / from_pretrained."""
