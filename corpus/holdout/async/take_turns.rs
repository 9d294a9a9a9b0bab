use std::future::Future;

/// Runs the jobs one after the other and adds up their costs; stops before the job that would exceed the budget is begun,
/// judged by the cost of the dearest job so far.
// focal
pub async fn run_within_budget<F, Fut>(jobs: Vec<F>, budget: u64) -> (usize, u64)
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = u64>,
{
    let mut spent = 0;
    let mut dearest = 0;
    let mut done = 0;
    for job in jobs {
        if spent + dearest > budget {
            break;
        }
        let cost = job().await;
        spent += cost;
        dearest = dearest.max(cost);
        done += 1;
    }
    (done, spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(costs: &[u64]) -> Vec<impl FnOnce() -> std::future::Ready<u64>> {
        costs.iter().copied().map(|cost| move || std::future::ready(cost)).collect()
    }

    #[tokio::test]
    async fn test_all_jobs_fit() {
        assert_eq!(run_within_budget(jobs(&[1, 2, 3]), 10).await, (3, 6));
    }

    #[tokio::test]
    async fn test_stops_when_the_next_may_not_fit() {
        assert_eq!(run_within_budget(jobs(&[4, 1, 1, 1]), 8).await, (1 + 1, 5));
        assert_eq!(run_within_budget(jobs(&[4, 1, 1, 1]), 9).await, (3, 6));
    }

    #[tokio::test]
    async fn test_the_first_job_always_runs() {
        assert_eq!(run_within_budget(jobs(&[7, 1]), 0).await, (1, 7));
    }

    #[tokio::test]
    async fn test_no_jobs_cost_nothing() {
        assert_eq!(run_within_budget(jobs(&[]), 5).await, (0, 0));
    }
}
