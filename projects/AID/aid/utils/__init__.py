"""Utilities: errors, files, texts, suggestions, drawing, memory, Detectron2's private names."""
