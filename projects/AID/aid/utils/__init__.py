"""Utilities: errors, files, drawing, memory, and access to Detectron2's private names."""
