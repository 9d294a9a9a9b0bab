//! Loops compiled for the vector width of the machine that runs them.

/// Work whose code is compiled twice: for any machine, and for one with AVX2.
///
/// Rust neither contracts nor reorders operations, so both have the same bits.
pub trait Wide {
    type Output;
    /// Must be `#[inline(always)]`, and so must everything hot that it calls: only inlined code takes the wider instructions.
    fn run(self) -> Self::Output;
}

/// Runs `work` with the widest instructions that it was compiled for.
#[inline]
pub fn wide<W: Wide>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "vector instructions that were just detected")]
        // SAFETY: the feature is there.
        return unsafe { avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<W: Wide>(work: W) -> W::Output {
    work.run()
}
