//! What is asked for: the corpus's functions, or prompts given as token ids; all of them, or the failures of an earlier round.

use std::collections::BTreeMap;
use std::path::Path;

use model::prompt;
use model::tokenizer::Tokenizer;
use record::compile::{COMPILE_SCHEMA_VERSION, CompileResults};
use record::corpus::CorpusRow;
use record::generation::TokenTask;
use stage_kit::{Context, Result, StageError, digest, files};

use crate::feedback::{Repair, repairs};
use crate::params::Params;
use crate::weights::model_error;

/// One completion to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) task_id: String,
    pub(crate) sample_idx: u32,
    pub(crate) round: u32,
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) prompt_sha256: String,
}

impl Job {
    /// Keys the job's draws: a function of what it is, not of when it runs.
    pub(crate) fn sequence_id(&self) -> u64 {
        let name = format!("{}\0{}\0{}", self.task_id, self.sample_idx, self.round);
        let hash = digest::sha256_hex(name);
        u64::from_str_radix(&hash[..16], 16).unwrap_or_default()
    }
}

/// All jobs, in the order of their tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<Job>,
    pub(crate) n_tasks: u64,
    /// Whether prompts were rendered from the template.
    pub(crate) from_template: bool,
}

/// Reads the tasks and makes their prompts.
///
/// # Errors
/// Missing or damaged files, double ids, feedback about unknown tasks, nothing to do.
pub(crate) fn read(params: &Params, context: &Context, tokenizer: Option<&Tokenizer>) -> Result<Jobs> {
    match (context.optional_input("tasks")?, context.optional_input("corpus")?) {
        (Some(dir), _) => {
            if context.optional_input("feedback")?.is_some() {
                return Err(StageError::usage(
                    "feedback needs the functions of a corpus, and tasks were given as token ids",
                )
                .next("leave out `feedback`, or give `corpus` instead of `tasks`"));
            }
            token_jobs(params, dir)
        }
        (None, Some(dir)) => {
            let tokenizer = tokenizer.ok_or_else(|| {
                StageError::failed("the model has no tokenizer.json, and the functions of a corpus are text")
                    .next("fetch the whole model, or give `tasks` as token ids")
            })?;
            corpus_jobs(params, context, dir, tokenizer)
        }
        (None, None) => Err(StageError::usage("there is nothing to generate for")
            .next("give the functions (--input corpus=DIR), or prompts as token ids (--input tasks=DIR)")),
    }
}

fn token_jobs(params: &Params, dir: &Path) -> Result<Jobs> {
    let path = if dir.is_dir() { dir.join("tasks.jsonl") } else { dir.to_owned() };
    let mut tasks: Vec<TokenTask> = files::read_jsonl(&path)?;
    unique(tasks.iter().map(|t| t.id.as_str()), &path)?;
    cut(&mut tasks, params.limit);
    if tasks.is_empty() {
        return Err(nothing(&path));
    }
    let mut jobs = Vec::new();
    for task in &tasks {
        if task.prompt_ids.is_empty() {
            return Err(StageError::failed(format!("task `{}` has an empty prompt", task.id))
                .at(path.display().to_string())
                .next("give it at least one token"));
        }
        let bytes: Vec<u8> = task.prompt_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let prompt_sha256 = digest::sha256_hex(bytes);
        jobs.extend((0..params.samples).map(|sample_idx| Job {
            task_id: task.id.clone(),
            sample_idx,
            round: 0,
            prompt_ids: task.prompt_ids.clone(),
            prompt_sha256: prompt_sha256.clone(),
        }));
    }
    Ok(Jobs { jobs, n_tasks: tasks.len() as u64, from_template: false })
}

fn corpus_jobs(params: &Params, context: &Context, dir: &Path, tokenizer: &Tokenizer) -> Result<Jobs> {
    let mut rows: Vec<CorpusRow> = Vec::new();
    for split in &params.splits {
        rows.extend(files::read_jsonl::<CorpusRow>(&dir.join(format!("{split}.jsonl")))?);
    }
    unique(rows.iter().map(|r| r.id.as_str()), dir)?;
    let repairs = match context.optional_input("feedback")? {
        Some(feedback) => Some(read_feedback(feedback, &rows)?),
        None => None,
    };
    cut(&mut rows, params.limit);
    if rows.is_empty() {
        return Err(nothing(dir));
    }
    let mut jobs = Vec::new();
    let mut n_tasks = 0;
    for row in &rows {
        let before = jobs.len();
        match &repairs {
            None => row_jobs(row, params.samples, tokenizer, &mut jobs)?,
            Some(repairs) => {
                for repair in repairs.get(&row.id).into_iter().flatten() {
                    jobs.push(job(row, repair.sample_idx, repair.round, Some(&repair.text), tokenizer)?);
                }
            }
        }
        n_tasks += u64::from(jobs.len() > before);
    }
    Ok(Jobs { jobs, n_tasks, from_template: true })
}

fn row_jobs(row: &CorpusRow, samples: u32, tokenizer: &Tokenizer, jobs: &mut Vec<Job>) -> Result<()> {
    let first = job(row, 0, 0, None, tokenizer)?;
    jobs.extend((0..samples).map(|sample_idx| Job { sample_idx, ..first.clone() }));
    Ok(())
}

fn job(
    row: &CorpusRow,
    sample_idx: u32,
    round: u32,
    feedback: Option<&str>,
    tokenizer: &Tokenizer,
) -> Result<Job> {
    let prompt = prompt::render(row, feedback);
    Ok(Job {
        task_id: row.id.clone(),
        sample_idx,
        round,
        prompt_ids: prompt.encode(tokenizer).map_err(model_error)?,
        prompt_sha256: prompt.sha256(),
    })
}

fn read_feedback(dir: &Path, rows: &[CorpusRow]) -> Result<BTreeMap<String, Vec<Repair>>> {
    let path = if dir.is_dir() { dir.join("compile_results.json") } else { dir.to_owned() };
    let results: CompileResults = files::read_versioned(&path, COMPILE_SCHEMA_VERSION)?;
    let repairs = repairs(&results);
    match repairs.keys().find(|id| !rows.iter().any(|row| row.id == **id)) {
        Some(id) => Err(StageError::failed(format!("task `{id}` is not in the splits of this corpus"))
            .at(path.display().to_string())
            .next("give the corpus and the splits that the earlier round was generated for")),
        None => Ok(repairs),
    }
}

fn cut<T>(tasks: &mut Vec<T>, limit: u32) {
    if limit > 0 {
        tasks.truncate(limit as usize);
    }
}

fn unique<'a>(ids: impl Iterator<Item = &'a str>, path: &Path) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(StageError::failed(format!("two tasks have the id `{id}`"))
                .at(path.display().to_string())
                .next("give each task an id of its own"));
        }
    }
    Ok(())
}

fn nothing(path: &Path) -> StageError {
    StageError::failed("there are no tasks")
        .at(path.display().to_string())
        .next("check the file and the parameter `splits`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_s_draws_follow_its_name_alone() {
        let job = |task: &str, sample_idx, round| Job {
            task_id: task.into(),
            sample_idx,
            round,
            prompt_ids: vec![],
            prompt_sha256: String::new(),
        };
        let ids = [job("a", 0, 0), job("a", 1, 0), job("a", 0, 1), job("b", 0, 0)].map(|j| j.sequence_id());
        let distinct: std::collections::BTreeSet<u64> = ids.into_iter().collect();
        assert_eq!(distinct.len(), 4);
        assert_eq!(job("a", 1, 0).sequence_id(), ids[1]);
    }

    #[test]
    fn double_ids_are_refused() {
        assert!(unique(["a", "b"].into_iter(), Path::new("t")).is_ok());
        assert!(unique(["a", "a"].into_iter(), Path::new("t")).unwrap_err().to_string().contains("`a`"));
    }
}
