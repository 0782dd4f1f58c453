"""Utilities: errors, files, texts, drawing, memory, and access to Detectron2's private names."""
