//! `lockstep check`.

use clap::Args;
use serde_json::json;

use super::Done;
use super::output::{self, JSON_VERSION, say};
use crate::check::{self, Severity};
use crate::context::Context;
use crate::error::Result;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Print only warnings and errors, and nothing if all is well; no effect on --json
    #[arg(long, short)]
    quiet: bool,
}

impl Check {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let findings = check::run(cx)?;
        if json {
            output::print_json(&json!({"version": JSON_VERSION, "findings": findings}))?;
        } else {
            let is_said =
                |finding: &&check::Finding| !self.quiet || finding.severity != Severity::Ok;
            for finding in findings.iter().filter(is_said) {
                let severity = match finding.severity {
                    Severity::Error => "ERROR",
                    Severity::Warning => "warning",
                    Severity::Ok => "ok",
                };
                let hint =
                    finding.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                say!("{severity:<8} {}: {}{hint}", finding.subject, finding.what);
            }
        }
        let worst = findings.iter().map(|finding| finding.severity).min();
        Ok(if worst == Some(Severity::Error) { Done::WithProblems } else { Done::Well })
    }
}
