"""The command line: one module per command, found by name in `sslfast.cli.main`."""
