//! Fused kernels over candle-core (convolution, attention, norms), chosen by device behind one seam. Knows no model and no file.
