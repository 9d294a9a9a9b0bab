use std::future::Future;
use std::time::Duration;

#[derive(Debug, PartialEq)]
pub enum Answer<T> {
    InTime(T),
    Late(T),
    Never,
}

/// Waits for `work` up to `patience`, then up to `grace` more; tells in which of the two it was done.
// focal
pub async fn within<T>(work: impl Future<Output = T>, patience: Duration, grace: Duration) -> Answer<T> {
    tokio::pin!(work);
    let begin = tokio::time::Instant::now();
    match tokio::time::timeout(patience + grace, &mut work).await {
        Ok(value) if begin.elapsed() < patience => Answer::InTime(value),
        Ok(value) => Answer::Late(value),
        Err(_) => Answer::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(ms: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        ms
    }

    #[tokio::test(start_paused = true)]
    async fn test_quick_work_is_in_time() {
        let answer = within(after(10), Duration::from_millis(50), Duration::from_millis(50)).await;
        assert_eq!(answer, Answer::InTime(10));
    }

    #[tokio::test(start_paused = true)]
    async fn test_slow_work_is_late() {
        let answer = within(after(70), Duration::from_millis(50), Duration::from_millis(50)).await;
        assert_eq!(answer, Answer::Late(70));
    }

    #[tokio::test(start_paused = true)]
    async fn test_hanging_work_is_never_done() {
        let answer = within(after(500), Duration::from_millis(50), Duration::from_millis(50)).await;
        assert_eq!(answer, Answer::Never);
    }
}
