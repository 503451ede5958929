"""The command line: arguments in, one library call, its result drawn. The only room that prints or exits."""
