//! `lockstep check`.

use serde_json::json;

use super::Done;
use super::output::{self, JSON_VERSION, say};
use crate::check::{self, Severity};
use crate::context::Context;
use crate::error::Result;

pub(super) fn run(cx: &Context, json: bool) -> Result<Done> {
    let findings = check::run(cx)?;
    if json {
        output::print_json(&json!({"version": JSON_VERSION, "findings": findings}))?;
    } else {
        for finding in &findings {
            let severity = match finding.severity {
                Severity::Error => "ERROR",
                Severity::Warning => "warning",
                Severity::Ok => "ok",
            };
            let hint = finding.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            say!("{severity:<8} {}: {}{hint}", finding.subject, finding.what);
        }
    }
    let worst = findings.iter().map(|finding| finding.severity).min();
    Ok(if worst == Some(Severity::Error) { Done::WithProblems } else { Done::Well })
}
