"""One module per command: ``configure(parser)`` adds arguments, ``run(args)`` does the work."""
