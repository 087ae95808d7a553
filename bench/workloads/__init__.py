"""End-to-end programs: a whole model trained by torch.nn and by fastrnn side by side."""
