//! Runs simulated worlds: one, so many, or as many as fit some hours. Called by `scripts/sim`.
//!
//! Invariant: a seed that fails is named with the line that runs it again, and the exit code is 1 if any did.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use sealdrive_tests::sim::world::{Report, reproduce, run};

/// Simulated worlds of client and server.
#[derive(Parser)]
struct Args {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1, conflicts_with = "hours")]
    seeds: u64,
    /// Run for so many hours instead.
    #[arg(long)]
    hours: Option<f64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let began = Instant::now();
    let time = args
        .hours
        .map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let (mut sum, mut worlds, mut failed) = (Report::default(), 0, 0);
    for seed in args.seed.. {
        let enough = match time {
            Some(time) => began.elapsed() >= time,
            None => worlds >= args.seeds,
        };
        if enough {
            break;
        }
        let outcome = run(seed);
        worlds += 1;
        match &outcome.result {
            Ok(report) => sum.add(report),
            Err(trouble) => {
                failed += 1;
                println!("seed {seed} FAILED: {trouble}\nagain: {}", reproduce(seed));
            }
        }
        if args.hours.is_none() && args.seeds == 1 {
            let digest = blake3::Hash::from_bytes(outcome.digest);
            println!(
                "seed {seed}: digest {digest}, {} decisions, {:?} of virtual time",
                outcome.decisions, outcome.elapsed
            );
        }
        if worlds % 500 == 0 {
            println!("{worlds} worlds, {failed} failed, {:.0?}", began.elapsed());
        }
    }
    println!("{sum:#?}");
    println!("{worlds} worlds, {failed} failed, {:.0?}", began.elapsed());
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
