// items
pub fn block<F: std::future::Future>(f: F) -> F::Output { let mut f = Box::pin(f); let w = std::task::Waker::noop(); let mut c = std::task::Context::from_waker(w); loop { if let std::task::Poll::Ready(x) = f.as_mut().poll(&mut c) { return x; } } }
// function
pub async fn later(n: u32) -> u32 { let m = async { n + 1 }.await; if m > 3 && n != 9 { m } else { 0 } }
// tests
#[test] fn t() { assert_eq!(block(later(5)), 6); assert_eq!(block(later(1)), 0); }
