//! Makes a failing script short: drops lives, steps and options, lowers numbers, keeps less at the crash, as
//! long as what is left fails.
//!
//! What is left out moves the events of the crash. So a candidate counts as failing if *any* crash state of
//! it does, and what goes on being shrunk is the script that ends with that one.

use super::script::{End, Keep, Life, Params, Script, Step};

/// Candidates tried at most.
const TRIES_MAX: usize = 3000;

/// Shrinks `script`. `fails` says whether a candidate fails, and gives the failing script that was found on
/// the way.
pub fn shrink(script: Script, fails: &mut dyn FnMut(&Script) -> Option<Script>) -> Script {
    let mut best = script;
    let mut tries = 0;
    loop {
        let smaller = candidates(&best).into_iter().filter(|c| size(c) < size(&best)).find_map(|candidate| {
            tries += 1;
            if tries > TRIES_MAX {
                return None;
            }
            fails(&candidate).filter(|found| size(found) < size(&best))
        });
        match smaller {
            Some(found) => best = found,
            None => return best,
        }
    }
}

/// What is made smaller: the number of steps and lives first, then the text, then the numbers in it.
fn size(script: &Script) -> (usize, usize, u64) {
    let text = script.to_string();
    let steps: usize = script.lives.iter().map(|life| life.steps.len() + 2).sum();
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
    (steps, text.len(), digits.fold(0, u64::saturating_add))
}

fn candidates(script: &Script) -> Vec<Script> {
    let mut all = Vec::new();
    let lives = script.lives.len();
    let with = |lives: Vec<Life>| Script { params: script.params.clone(), lives };
    for n in (0..lives).filter(|_| lives > 1) {
        let mut rest = script.lives.clone();
        rest.remove(n);
        all.push(with(rest));
    }
    // Steps: halves, quarters and so on, down to single ones.
    let mut chunk = script.lives.iter().map(|life| life.steps.len()).max().unwrap_or(0);
    while chunk > 0 {
        for (n, life) in script.lives.iter().enumerate() {
            for start in (0..life.steps.len()).step_by(chunk) {
                let mut changed = script.lives.clone();
                changed[n].steps.drain(start..(start + chunk).min(life.steps.len()));
                all.push(with(changed));
            }
        }
        chunk /= 2;
    }
    for params in simpler_params(&script.params) {
        all.push(Script { params, lives: script.lives.clone() });
    }
    for (n, life) in script.lives.iter().enumerate() {
        for end in simpler_ends(&life.end, n + 1 == lives) {
            let mut changed = script.lives.clone();
            changed[n].end = end;
            all.push(with(changed));
        }
        for (i, step) in life.steps.iter().enumerate() {
            for step in simpler_steps(step) {
                let mut changed = script.lives.clone();
                changed[n].steps[i] = step;
                all.push(with(changed));
            }
        }
    }
    all
}

fn simpler_params(params: &Params) -> Vec<Params> {
    let usual = Params::default();
    let mut all = vec![
        Params { flushrq: usual.flushrq, ..params.clone() },
        Params { delta_max: usual.delta_max, ..params.clone() },
        Params { log_data: usual.log_data, ..params.clone() },
        Params { discard: usual.discard, ..params.clone() },
        Params { verify_match: usual.verify_match, ..params.clone() },
        Params { bypass: usual.bypass, ..params.clone() },
        Params { runs: usual.runs, ..params.clone() },
        Params { algorithm: usual.algorithm, ..params.clone() },
        Params { log_blocks: usual.log_blocks, ..params.clone() },
        Params { spare: usual.spare, ..params.clone() },
        Params { lbns: usual.lbns, ..params.clone() },
        Params { block_size: usual.block_size, ..params.clone() },
    ];
    all.push(Params { lbns: params.lbns / 2, ..params.clone() });
    all.push(Params { spare: params.spare / 2, ..params.clone() });
    all.retain(|p| p != params && p.lbns > 0 && p.spare > 0);
    all
}

fn simpler_ends(end: &End, last: bool) -> Vec<End> {
    match end {
        End::Close => Vec::new(),
        End::Kill { event } => {
            let close = if last { None } else { Some(End::Close) };
            close.into_iter().chain(event.map(|_| End::Kill { event: None })).collect()
        }
        End::Crash { event, keep } => {
            let mut all = vec![];
            if !last {
                all.push(End::Close);
            }
            all.push(End::Crash { event: None, keep: keep.clone() });
            let with = |keep| End::Crash { event: *event, keep };
            all.extend([with(Keep::None), with(Keep::All)]);
            if let Keep::Only(pieces) = keep {
                for i in 0..pieces.len() {
                    let mut fewer = pieces.clone();
                    fewer.remove(i);
                    all.push(with(Keep::Only(fewer)));
                    let mut whole = pieces.clone();
                    whole[i].sectors = None;
                    all.push(with(Keep::Only(whole)));
                }
            }
            all
        }
    }
}

fn simpler_steps(step: &Step) -> Vec<Step> {
    match *step {
        Step::Write { lbn, blocks, content, fua } => {
            let write = |lbn, blocks, content, fua| Step::Write { lbn, blocks, content, fua };
            vec![
                write(lbn, 1, content, fua),
                write(lbn, blocks.div_ceil(2), content, fua),
                write(0, blocks, content, fua),
                write(lbn / 2, blocks, content, fua),
                write(lbn, blocks, 1, fua),
                write(lbn, blocks, content / 2, fua),
                write(lbn, blocks, content, false),
            ]
        }
        Step::Part { offset, len, content, fua } => {
            let part = |offset, len, content, fua| Step::Part { offset, len, content, fua };
            vec![
                Step::Write { lbn: 0, blocks: 1, content, fua },
                part(offset, 512, content, fua),
                part(0, len, content, fua),
                part(offset / 512 * 512, len, content, fua),
                part(offset, len / 2 + 1, content, fua),
                part(offset, len, 1, fua),
                part(offset, len, content, false),
            ]
        }
        Step::Trim { offset, len, fua } => spans(offset, len)
            .map(|(offset, len)| Step::Trim { offset, len, fua })
            .chain([Step::Trim { offset, len, fua: false }])
            .collect(),
        Step::Zero { offset, len, fua } => spans(offset, len)
            .map(|(offset, len)| Step::Zero { offset, len, fua })
            .chain([Step::Trim { offset, len, fua }, Step::Zero { offset, len, fua: false }])
            .collect(),
        Step::Flush | Step::Checkpoint | Step::Collect | Step::Fail { .. } => Vec::new(),
    }
}

fn spans(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let down = |bytes: u64| bytes / 4096 * 4096;
    [(0, len), (down(offset), len), (offset, down(len)), (down(offset), down(len + 4095)), (offset, 4096)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_nothing_to_do_with_the_failure_is_left_out() {
        let script: Script = "bs=512 lbns=40 flushrq=2 | w0=1 w3=4 ckpt crash@7:t5/3 | w1=1 t512+1024! gc z512+3000! w8+3=9! flush close \
                              | w2=7 crash@9:d0,m1.0-3"
            .parse()
            .unwrap();
        // Fails as long as some life writes more than one block after a trim.
        let mut fails = |candidate: &Script| {
            let in_order = candidate.lives.iter().any(|life| {
                let trim = life.steps.iter().position(|step| matches!(step, Step::Trim { .. }));
                let write =
                    life.steps.iter().rposition(|step| matches!(step, Step::Write { blocks: 2.., .. }));
                trim.zip(write).is_some_and(|(trim, write)| trim < write)
            });
            (in_order && candidate.validate().is_ok()).then(|| candidate.clone())
        };
        let short = shrink(script, &mut fails).to_string();
        assert_eq!(short, "| t0+1024 w0+2=0 close ");
    }
}
