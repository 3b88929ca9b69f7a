//! Upscalers, face restorers, captioner, interrogator, safety and background remover: a picture becomes a picture or words. Knows no Horde and no network.
