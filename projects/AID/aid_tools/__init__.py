"""Tools around the method: reports, figures, prediction, export, benchmarks and studies."""
