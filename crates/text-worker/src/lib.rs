//! Turns text jobs of the Horde into text requests and answers into submissions. The only room that knows both.
