//! Turns image jobs of the Horde into diffusion requests and pictures into submissions. The only room that knows both.
