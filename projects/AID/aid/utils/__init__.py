"""Utilities: errors, files, texts, suggestions, drawing, memory, and access to Detectron2's private names."""
