# Has the name of one of harp's own files.
message(FATAL_ERROR "harp includes a file of the project that includes it")
