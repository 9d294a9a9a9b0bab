use std::time::Duration;

/// Calls `attempt` until it succeeds, at most `tries` times, waiting twice as long before each new try.
// focal
pub async fn with_backoff<T, E, F>(tries: u32, first_wait: Duration, mut attempt: F) -> Result<T, Option<E>>
where
    F: FnMut(u32) -> Result<T, E>,
{
    let mut wait = first_wait;
    let mut last = None;
    for number in 0..tries {
        if number > 0 {
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        match attempt(number) {
            Ok(value) => return Ok(value),
            Err(error) => last = Some(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn test_first_success_needs_no_wait() {
        let begin = Instant::now();
        let got = with_backoff(3, Duration::from_secs(1), |n| Ok::<u32, ()>(n)).await;
        assert_eq!(got, Ok(0));
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn test_waits_double() {
        let begin = Instant::now();
        let got = with_backoff(4, Duration::from_secs(1), |n| if n == 3 { Ok("done") } else { Err(n) }).await;
        assert_eq!(got, Ok("done"));
        assert_eq!(begin.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn test_last_error_is_returned() {
        let got = with_backoff(2, Duration::from_millis(5), Err::<(), u32>).await;
        assert_eq!(got, Err(Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn test_no_tries_no_error() {
        let got = with_backoff(0, Duration::from_secs(1), |_| Ok::<(), ()>(())).await;
        assert_eq!(got, Err(None));
    }
}
