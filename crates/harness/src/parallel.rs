//! The same work on many items at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Parsers recurse, and generated text can nest as deep as it is long. Only what is used of this takes memory.
const STACK_BYTES: usize = 512 << 20;

/// Applies `work` to every item on up to `threads` threads with deep stacks; results come in the order of the items,
/// whatever thread finished first.
pub fn parallel_map<T, R, F>(threads: usize, items: &[T], work: F) -> Vec<R>
where
    T: Sync,
    R: Send,
    F: Fn(usize, &T) -> R + Sync,
{
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let worker = || {
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(idx) else { break };
            let result = work(idx, item);
            results.lock().unwrap_or_else(|e| e.into_inner()).push((idx, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            if thread.spawn_scoped(scope, worker).is_err() {
                // No room for another thread with such a stack: this one helps out.
                worker();
                break;
            }
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_by_key(|(idx, _)| *idx);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..100).collect();
        for threads in [0, 1, 7, 1000] {
            let doubled = parallel_map(threads, &items, |_, n| {
                std::thread::sleep(std::time::Duration::from_micros(n * 37 % 101));
                n * 2
            });
            assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
        assert!(parallel_map(4, &[] as &[u8], |_, n| *n).is_empty());
    }
}
