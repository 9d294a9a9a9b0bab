//! The stage `train-cuda`.
