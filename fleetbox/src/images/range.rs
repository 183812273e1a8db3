//! Requests the rest of a file (RFC 9110 section 14).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};

use super::ImageError;
use super::client::{self, Head, RequestError};
use super::download::{Body, Failure, Job, Source};

/// Requests everything after the first `offset` bytes. If the server's file no longer matches
/// `validator`, the server sends all of it.
pub(super) async fn rest(
    job: &Job<'_>,
    uri: &Uri,
    offset: u64,
    validator: Option<String>,
) -> Result<Body, Failure> {
    let mut headers = Vec::new();
    if offset > 0 {
        headers.push((header::RANGE, format!("bytes={offset}-")));
        if let Some(validator) = &validator {
            headers.push((header::IF_RANGE, validator.clone()));
        }
    }
    let headers = headers
        .into_iter()
        .filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?)))
        .collect();
    let verified = job.sha256.is_some();
    let answer = match client::get(uri, verified, headers).await {
        Ok(answer) => answer,
        Err(error @ RequestError::Transient(_)) => {
            return Err(Failure::Transient(error.at(job.url)));
        }
        Err(error) => return Err(Failure::Fatal(error.at(job.url))),
    };
    let new_validator = validator_of(&answer.head.headers);
    match answer.head.status {
        StatusCode::PARTIAL_CONTENT if offset > 0 => {
            let changed =
                validator.is_some() && new_validator.is_some() && new_validator != validator;
            match content_range(&answer.head.headers) {
                Some((Some(first), total)) if first == offset && !changed => Ok(Body {
                    offset,
                    total: total.or_else(|| answer.head.length.map(|n| n + offset)),
                    validator: new_validator.or(validator),
                    source: Source::Web(answer),
                }),
                _ => Err(Failure::Stale),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
            match content_range(&answer.head.headers) {
                // All of it had arrived before.
                Some((None, Some(total))) if total == offset => Ok(Body {
                    source: Source::Complete,
                    offset,
                    total: Some(total),
                    validator,
                }),
                _ => Err(Failure::Stale),
            }
        }
        StatusCode::OK => Ok(Body {
            offset: 0,
            total: answer.head.length,
            validator: new_validator,
            source: Source::Web(answer),
        }),
        _ => Err(refusal(&answer.head)),
    }
}

/// The failure for an answer's status.
fn refusal(head: &Head) -> Failure {
    let status = head.status;
    let error = ImageError::Status {
        url: head.uri.to_string(),
        status: status.to_string(),
        advice: match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                "; the image was moved or removed on the server"
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "; the server requires permission for this address"
            }
            s if s.is_server_error() => "; try again later",
            _ => "",
        },
    };
    let transient = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    if transient {
        Failure::Transient(error)
    } else {
        Failure::Fatal(error)
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn validator_of(headers: &HeaderMap) -> Option<String> {
    text(headers, header::ETAG)
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| text(headers, header::LAST_MODIFIED))
        .map(str::to_owned)
}

/// The first byte and the total of `Content-Range` (RFC 9110 section 14.4), if given.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text(headers, header::CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let total = total.parse().ok();
    if range == "*" {
        return Some((None, total));
    }
    let first = range.split_once('-')?.0.parse().ok()?;
    Some((Some(first), total))
}
