//! Text encoders, noise, schedules, samplers and U-Net pipelines: a request becomes pictures. Knows no Horde and no network.
