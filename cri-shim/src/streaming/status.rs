//! What the error channel of an exec or attach says at the end.

use serde_json::json;

use super::protocol::Version;

/// How a command ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The process has ended with this exit code; an attachment has ended with 0.
    Exited(i32),
    /// It could not be started, or followed to its end.
    Failed(anyhow::Error),
}

impl Outcome {
    /// The text of the error channel: from v4 on a Kubernetes `Status` as JSON, before that the error or nothing.
    pub(super) fn text(&self, version: Version) -> Vec<u8> {
        let message = match self {
            Outcome::Exited(0) => String::new(),
            Outcome::Exited(code) => format!("command terminated with non-zero exit code: {code}"),
            Outcome::Failed(error) => format!("{error:#}"),
        };
        if version < Version::V4 {
            return message.into_bytes();
        }
        let status = match self {
            Outcome::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exited(code) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(_) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError",
                "details": {"causes": [{"message": message}]}, "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_by_version() {
        let text = |outcome: &Outcome, version| String::from_utf8(outcome.text(version)).unwrap();
        let failed = Outcome::Failed(anyhow::anyhow!("no such file").context("start \"x\""));
        assert_eq!(text(&Outcome::Exited(0), Version::V1), "");
        assert_eq!(text(&Outcome::Exited(3), Version::V3), "command terminated with non-zero exit code: 3");
        assert_eq!(text(&failed, Version::V2), "start \"x\": no such file");
        let status: serde_json::Value = serde_json::from_str(&text(&Outcome::Exited(3), Version::V4)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert!(text(&Outcome::Exited(0), Version::V5).contains("\"Success\""));
        assert!(text(&failed, Version::V4).contains("start \\\"x\\\": no such file"));
    }
}
