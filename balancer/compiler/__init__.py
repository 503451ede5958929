"""Running the vendor's `edgetpu_compiler`, and reading what it reports and writes."""

from balancer.compiler.checking import Compiled, Refused
from balancer.compiler.program import Compiler, CompilerOptions, Outcome, Split, find_compiler

__all__ = ["Compiled", "Compiler", "CompilerOptions", "Outcome", "Refused", "Split", "find_compiler"]
