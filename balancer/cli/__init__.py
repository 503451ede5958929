"""The command line. Each verb parses its arguments, makes one library call and prints the result.

Nothing outside this folder prints or exits.
"""
