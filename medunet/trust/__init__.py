"""What a shared bundle is, before anything of it is run: standard library, PyYAML and, for signatures, cryptography."""
