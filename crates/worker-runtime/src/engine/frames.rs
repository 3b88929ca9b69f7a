//! Frames between supervisor and engine child: a little-endian `u32` length, then one message as MessagePack with named
//! fields. A frame that is too long or cannot be read is a protocol error; the child is then ended, not argued with.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::backend::{EngineReport, LoadError};
use crate::device::RunResult;

/// Longest body: a batch of twenty uncompressed 2048² pictures is 252 MB.
pub const MAX_BODY_BYTES: usize = 512 << 20;

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToEngine<W> {
    /// The first frame: load with this configuration, opaque to the runtime.
    Load {
        /// The program's own.
        config: serde_json::Value,
    },
    /// Run a job. At most `capacity` at once.
    Run {
        /// Number of the job on this pipe.
        job: u64,
        /// The work.
        work: W,
    },
    /// End that job at its next step.
    Cancel {
        /// Number of the job.
        job: u64,
    },
}

/// From the engine.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromEngine<O> {
    /// Loaded; also sent again when the report changed, after a job or while there is none.
    Ready(EngineReport),
    /// Not loaded, and trying again will not help.
    Refused(LoadError),
    /// A step was made.
    Progress {
        /// Number of the job.
        job: u64,
        /// Steps done.
        done: u32,
        /// Steps in all.
        total: u32,
        /// One word.
        phase: String,
    },
    /// The job ended.
    Done {
        /// Number of the job.
        job: u64,
        /// What it brought.
        result: RunResult<O>,
    },
}

/// The pipe cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Reading or writing failed, or the pipe closed inside a frame.
    #[error("the pipe broke: {0}")]
    Pipe(#[from] std::io::Error),
    /// The length is above [`MAX_BODY_BYTES`].
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    /// The body is not the message expected. The text names types only.
    #[error("a frame could not be read: {0}")]
    Body(String),
}

/// One message as a whole frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0u8; 4];
    message
        .serialize(&mut rmp_serde::Serializer::new(&mut frame).with_struct_map())
        .map_err(|error| FrameError::Body(error.to_string()))?;
    let body_bytes = frame.len() - 4;
    let length = u32::try_from(body_bytes).ok().filter(|_| body_bytes <= MAX_BODY_BYTES);
    frame[..4].copy_from_slice(&length.ok_or(FrameError::TooLong(body_bytes))?.to_le_bytes());
    Ok(frame)
}

/// The message in a body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    rmp_serde::from_slice(body).map_err(|error| {
        // serde may quote values; a work's values are a stranger's words, so only the kind of error is told.
        let kind = match error {
            rmp_serde::decode::Error::InvalidMarkerRead(_) | rmp_serde::decode::Error::InvalidDataRead(_) => {
                "it ends early"
            }
            rmp_serde::decode::Error::TypeMismatch(_) => "wrong type",
            rmp_serde::decode::Error::DepthLimitExceeded => "too deep",
            _ => "not the message expected",
        };
        FrameError::Body(kind.to_owned())
    })
}

/// Reads one body; `None` when the pipe closed between frames. Memory grows with what arrives, not with what is claimed.
pub async fn read(pipe: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0u8; 4];
    if let Err(error) = pipe.read_exact(&mut length).await {
        return if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error.into())
        };
    }
    let length = checked(length)?;
    let mut body = Vec::with_capacity(length.min(1 << 16));
    pipe.take(length as u64).read_to_end(&mut body).await?;
    whole(body, length)
}

/// As [`read`], blocking.
pub fn read_blocking(pipe: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0u8; 4];
    if let Err(error) = pipe.read_exact(&mut length) {
        return if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error.into())
        };
    }
    let length = checked(length)?;
    let mut body = Vec::with_capacity(length.min(1 << 16));
    pipe.take(length as u64).read_to_end(&mut body)?;
    whole(body, length)
}

/// Writes one message, blocking.
pub fn write_blocking<T: Serialize>(pipe: &mut impl Write, message: &T) -> Result<(), FrameError> {
    pipe.write_all(&encode(message)?)?;
    Ok(pipe.flush()?)
}

fn checked(length: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_BODY_BYTES {
        Err(FrameError::TooLong(length))
    } else {
        Ok(length)
    }
}

fn whole(body: Vec<u8>, length: usize) -> Result<Option<Vec<u8>>, FrameError> {
    if body.len() == length {
        Ok(Some(body))
    } else {
        Err(FrameError::Pipe(std::io::ErrorKind::UnexpectedEof.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Frame = ToEngine<(String, Vec<u8>)>;

    #[test]
    fn a_frame_comes_back_as_it_went_and_the_pipe_ends_between_frames() {
        let work = ("héllo".to_owned(), vec![1u8, 2, 3]);
        let mut bytes = encode(&ToEngine::Run {
            job: 7,
            work: work.clone(),
        })
        .expect("encode");
        bytes.extend(encode(&Frame::Cancel { job: 7 }).expect("encode"));
        let mut pipe = bytes.as_slice();
        let body = read_blocking(&mut pipe).expect("read").expect("a frame");
        assert!(matches!(decode::<Frame>(&body), Ok(ToEngine::Run { job: 7, work: got }) if got == work));
        assert!(read_blocking(&mut pipe).expect("read").is_some());
        assert!(read_blocking(&mut pipe).expect("read").is_none());
    }

    #[test]
    fn f075_a_claimed_gigabyte_is_refused_and_a_cut_frame_is_an_error() {
        let mut huge = u32::MAX.to_le_bytes().as_slice().to_vec();
        huge.extend([0; 16]);
        assert!(matches!(
            read_blocking(&mut huge.as_slice()),
            Err(FrameError::TooLong(_))
        ));
        let frame = encode(&Frame::Cancel { job: 1 }).expect("encode");
        for cut in 4..frame.len() {
            assert!(read_blocking(&mut &frame[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn f075_garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Frame>(&body);
            let _ = decode::<FromEngine<(String, Vec<u8>)>>(&body);
            let _ = read_blocking(&mut body.as_slice());
        }
    }
}
