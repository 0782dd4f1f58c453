"""Tools around the method: reports, visualization, prediction, export, benchmarks and studies."""
