"""What Redis itself runs, as one step.

PUT_PART is a part of the mirror that is built anew. The others are the arithmetic of domain.throttle, which the same
tests hold to both. A bucket is the text drained_ms:next_ms under a key that expires when nothing is counted any more.
The index has the key of each bucket by drained_ms, so that how many there are is known at once. All times are the
caller's; Redis is given nothing but spans. The first of the arguments and of the answer is the caller's nonce.
"""

PUT_PART = """
-- KEYS: the claim of the builder; the keys to be set, then those to be removed.
-- ARGV: what the claim must be, what it becomes and for how many seconds; for each key to be set its value and the time
-- at which it expires, as 'value:time value:time': one text, for a client is slow to send hundreds.
-- Answer: whether the claim was right; nothing is done where it was not.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local key = 2
for value, time in string.gmatch(ARGV[4], '(%d+):(%d+)') do
  redis.call('SET', KEYS[key], value, 'EXAT', time)
  key = key + 1
end
for i = key, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

RESERVE = """
-- KEYS: the index; for each of two counters its key, and its coarse one.
-- ARGV: nonce, now_ms, row limit, doublings; for each counter free, interval_ms, and what SQL holds: drained_ms and
-- next_ms of its key, then of its coarse one.
-- Answer: nonce, 0 and how long each counter waits in ms; or nonce, 1 and, for each, whether
-- it is coarse and its next_ms.
local now, doublings = tonumber(ARGV[2]), tonumber(ARGV[4])
local is_crowded = redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3])

local function find(key, at)
  local drained, due = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local text = redis.call('GET', key)
  local held, held_due = string.match(text or '0:0', '^(%d+):(%d+)$')
  return {key = key, is_held = text or drained > 0, drained = math.max(drained, tonumber(held or 0)),
          dues = {due, tonumber(held_due or 0)}}
end

local found, waits, must_wait = {}, {}, false
for i = 0, 1 do
  local at = 5 + 6 * i
  local bucket, coarse = find(KEYS[2 + 2 * i], at + 2), 0
  if is_crowded and not bucket.is_held then
    bucket, coarse = find(KEYS[3 + 2 * i], at + 4), 1
  end
  bucket.coarse, bucket.free, bucket.interval = coarse, tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local wait = 0
  for _, due in ipairs(bucket.dues) do
    if due - now > wait and due - now <= bucket.interval then wait = due - now end
  end
  must_wait = must_wait or wait > 0
  found[#found + 1], waits[#waits + 1] = bucket, wait
end
if must_wait then return {ARGV[1], 0, waits[1], waits[2]} end

local answer = {ARGV[1], 1}
for _, bucket in ipairs(found) do
  local drained = math.max(bucket.drained, now) + bucket.interval
  drained = math.min(drained, now + (bucket.free + doublings + 1) * bucket.interval)
  local failures, due = math.ceil((drained - now) / bucket.interval), 0
  if failures >= bucket.free then
    local delay = math.floor(bucket.interval / 2 ^ math.max(0, doublings - (failures - bucket.free)))
    if delay > 0 then due = now + delay end
  end
  redis.call('SET', bucket.key, string.format('%.0f:%.0f', drained, due), 'PX', string.format('%.0f', drained - now))
  redis.call('ZADD', KEYS[1], string.format('%.0f', drained), bucket.key)
  answer[#answer + 1] = bucket.coarse
  answer[#answer + 1] = due
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2], 'LIMIT', 0, 4)) do
  redis.call('DEL', key)
  redis.call('ZREM', KEYS[1], key)
end
redis.call('PEXPIRE', KEYS[1], 604800000)
return answer
"""

GIVE_BACK = """
-- KEYS: the index, each counter, and the buckets to be emptied. ARGV: nonce, now_ms, how many counters; for each
-- interval_ms and the next_ms that its attempt had set. Answer: nonce.
local now, many = tonumber(ARGV[2]), tonumber(ARGV[3])

local function empty(key)
  redis.call('DEL', key)
  redis.call('ZREM', KEYS[1], key)
end

for i = 1, many do
  local key, interval, counted_due = KEYS[1 + i], tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  local held, due = string.match(redis.call('GET', key) or '', '^(%d+):(%d+)$')
  if held then
    local drained = tonumber(held) - interval
    if tonumber(due) == counted_due then due = '0' end
    if drained > now then
      redis.call('SET', key, string.format('%.0f:%s', drained, due), 'PX', string.format('%.0f', drained - now))
      redis.call('ZADD', KEYS[1], string.format('%.0f', drained), key)
    else
      empty(key)
    end
  end
end
for i = 2 + many, #KEYS do empty(KEYS[i]) end
return {ARGV[1]}
"""
