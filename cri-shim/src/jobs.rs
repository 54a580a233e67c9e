//! One job per name. A request that comes while the same one runs (kubelet retries after its deadline) waits for the
//! running one's result. A job goes on when its caller has gone: nothing is left half made by a cancelled request.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tonic::Status;

type Outcome = Option<Result<String, Status>>;

/// The running jobs.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    running: Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>,
}

impl Jobs {
    /// Runs `job` under `name`, or waits for the one that runs under it. The result is the job's text (an id).
    pub async fn run<F>(&self, name: String, job: F) -> Result<String, Status>
    where
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let mut outcome = self.join_or_start(name, job);
        match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(Status::internal("a job without a result"))),
            Err(_) => Err(Status::internal("the job ended without a result; this is a defect of rrun-cri")),
        }
    }

    /// The names of what runs, for a person.
    pub fn names(&self) -> Vec<String> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn join_or_start<F>(&self, name: String, job: F) -> watch::Receiver<Outcome>
    where
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = running.get(&name).filter(|outcome| outcome.has_changed().is_ok()) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        running.insert(name.clone(), receiver.clone());
        drop(running);
        let jobs = self.running.clone();
        let job = crate::trace::follow(job);
        tokio::spawn(async move {
            let result = job.await;
            // Out of the list first: whoever comes now sees the job's effects, not its result.
            jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            sender.send_replace(Some(result));
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn the_same_name_is_the_same_job() {
        let (jobs, runs) = (Jobs::default(), Arc::new(AtomicU32::new(0)));
        let (open, gate) = watch::channel(false);
        let job = || {
            let (runs, mut gate) = (runs.clone(), gate.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.wait_for(|open| *open).await.unwrap();
                Ok("id".to_owned())
            }
        };
        let first = tokio::spawn({
            let (jobs, job) = (jobs.clone(), job());
            async move { jobs.run("a".into(), job).await }
        });
        while jobs.names().is_empty() {
            tokio::task::yield_now().await;
        }
        first.abort(); // the caller goes away, the job does not
        let second = tokio::spawn({
            let (jobs, job) = (jobs.clone(), job());
            async move { jobs.run("a".into(), job).await }
        });
        tokio::task::yield_now().await;
        open.send(true).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "id");
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(jobs.names().is_empty());
        assert_eq!(jobs.run("a".into(), job()).await.unwrap(), "id");
        assert_eq!(runs.load(Ordering::SeqCst), 2, "a job that has ended is not joined");
    }
}
