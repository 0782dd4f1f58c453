"""Errors, files, drawing, memory, and Detectron2's private names."""
