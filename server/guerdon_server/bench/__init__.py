"""`guerdon bench`: throughput and CPU per call of each process, beside a bare echo, in interleaved rounds."""
