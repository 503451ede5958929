"""What a segment costs on given hardware: bytes as the compiler lays them out, and nanoseconds term by term."""
