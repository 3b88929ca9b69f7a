//! Text engines behind one seam: llama.cpp with continuous batching, or a server somebody already runs. Knows no Horde.
