"""Tools beside the method: reports, pictures, prediction, export, benchmarks and studies."""
