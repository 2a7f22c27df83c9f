"""AVS: audio-visual segmentation as a task package."""
